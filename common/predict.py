"""Classify image files with an exported network: python -m common.predict --help"""

from common.base.cli import run_script
from common.deploy.predict import main

if __name__ == "__main__":
    run_script(main)
