from hvdtrain.api.functions import build_model as build_model
from hvdtrain.api.functions import plan as plan
from hvdtrain.api.functions import train as train
from hvdtrain.api.loaders import Loaders as Loaders
from hvdtrain.config.load import load_config as load_config
from hvdtrain.errors import HvdtrainError as HvdtrainError
from hvdtrain.inference.classifier import load as load
from hvdtrain.telemetry import watch as watch

__version__: str
