"""What every test needs: no hub, no progress bars, one thread per process."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    TQDM_DISABLE="1",
)

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny models lose more than they gain by a second thread, and the suite shares its cores."""
    torch.set_num_threads(1)
