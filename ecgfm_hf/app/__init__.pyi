from .server import AppSettings as AppSettings
from .server import build_app as build_app
from .server import private_folder as private_folder
from .server import serve as serve
