"""The agent: the record, the store, the model runtime, memory, and the plan-act loop."""

import os

# OpenMP threads wait for each other by sleeping, not by spinning. On a busy machine a spinning team takes the core
# that its own late thread needs, and everything is several times slower; on a quiet one sleeping costs a few percent.
# OpenMP reads this once, when torch is first imported, so it is set before anything of ours can import torch.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"
