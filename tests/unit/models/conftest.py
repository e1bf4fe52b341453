import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for reference.py


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
