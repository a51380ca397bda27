"""What happens while training: masks held by the sparse layers, checkpoints, exact resumption."""

from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .evaluation import evaluate as evaluate
from .history import Epoch as Epoch
from .history import History as History
from .interrupt import TrainingInterrupted as TrainingInterrupted
from .trainer import Progress as Progress
from .trainer import train as train
