# What __init__.py imports when it is first used, for type checkers and editors.
from asyrp.calibrating import calibrate as calibrate
from asyrp.data.datasets import read_folder as read_folder
from asyrp.data.datasets import read_image as read_image
from asyrp.directions import Direction as Direction
from asyrp.directions import load_direction as load_direction
from asyrp.model import Model as Model
from asyrp.model import open_model as open_model
from asyrp.report.pictures import labelled_grid as labelled_grid
from asyrp.session import Session as Session
from asyrp.training import train_direction as train_direction
from utils.errors import UserError as UserError
