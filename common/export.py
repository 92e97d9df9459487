"""Export finished runs again: python -m common.export --help"""

from common.base.cli import run_script
from common.deploy.export import main

if __name__ == "__main__":
    run_script(main)
