"""What the scripts import, for the server that their processes are forked from."""

import sys

import torch  # noqa: F401

import train  # noqa: F401
import validation  # noqa: F401

# The scripts themselves come afresh in each process, after what goes wrong there has been put into what they import.
del sys.modules["train"], sys.modules["validation"]
