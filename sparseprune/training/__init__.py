"""What happens while training: masks that hold, masks that change, checkpoints, exact resumption."""

from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .controls import random_masks_like as random_masks_like
from .controls import reinitialize as reinitialize
from .controls import scratch_epochs as scratch_epochs
from .deepr import DeepR as DeepR
from .dynamic import DSR as DSR
from .dynamic import SET as SET
from .dynamic import DynamicSparseTraining as DynamicSparseTraining
from .dynamic import RigL as RigL
from .dynamic import SparseMomentum as SparseMomentum
from .dynamic import cosine as cosine
from .evaluation import evaluate as evaluate
from .history import Epoch as Epoch
from .history import History as History
from .hold import attach as attach
from .interrupt import TrainingInterrupted as TrainingInterrupted
from .method import Method as Method
from .rewind import Snapshot as Snapshot
from .tickets import LotteryTickets as LotteryTickets
from .trainer import Progress as Progress
from .trainer import train as train
