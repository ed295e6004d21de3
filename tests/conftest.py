"""What holds for every test: no network, and one thread for each test worker.

Processes that tests start choose their own number of threads.
"""

import os
from unittest.mock import patch

# Read when the libraries are loaded. Where a test asks for rows that are on the hub, its client
# would try again for a minute and more; and two threads on tensors of a few numbers wait for each
# other longer than they compute.
os.environ["HF_HUB_OFFLINE"] = "1"
_ONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

with patch.dict(os.environ, _ONE):
    import torch

torch.set_num_threads(1)  # a plugin of pytest may have loaded it before
