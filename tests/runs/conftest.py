from tiny_cli import tiny_folder

__all__ = ["tiny_folder"]
