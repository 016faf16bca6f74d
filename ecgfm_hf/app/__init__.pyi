from .server import AppSettings as AppSettings
from .server import build_app as build_app
from .server import serve as serve
from .server import uploads_folder as uploads_folder
