"""The networks of the pruning papers; each has ``input_shape``, the (C, H, W) of the images it is built for.

Factories take ``num_classes``, ``input_shape`` and ``generator``; with one seed, ``torch.manual_seed(s)`` and
``generator=torch.Generator().manual_seed(s)`` give the same network.
"""

from sparseprune.models.cifar_resnet import resnet20 as resnet20
from sparseprune.models.cifar_resnet import resnet32 as resnet32
from sparseprune.models.cifar_resnet import resnet56 as resnet56
from sparseprune.models.init import initialize_ as initialize_
from sparseprune.models.lenet import lenet5 as lenet5
from sparseprune.models.lenet import lenet5_caffe as lenet5_caffe
from sparseprune.models.lenet import lenet_300_100 as lenet_300_100
from sparseprune.models.load import create as create
from sparseprune.models.load import fitting_options as fitting_options
from sparseprune.models.load import input_shape as input_shape
from sparseprune.models.resnet import resnet18 as resnet18
from sparseprune.models.resnet import resnet34 as resnet34
from sparseprune.models.resnet import resnet50 as resnet50
from sparseprune.models.resnet import resnet101 as resnet101
from sparseprune.models.resnet import resnet152 as resnet152
from sparseprune.models.vgg import vgg11_bn as vgg11_bn
from sparseprune.models.vgg import vgg16_bn as vgg16_bn
from sparseprune.models.vgg import vgg19_bn as vgg19_bn
from sparseprune.models.wide_resnet import wide_resnet as wide_resnet
from sparseprune.models.wide_resnet import wrn_16_8 as wrn_16_8
from sparseprune.models.wide_resnet import wrn_22_8 as wrn_22_8
from sparseprune.models.wide_resnet import wrn_28_10 as wrn_28_10
