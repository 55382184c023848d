"""Any ``torch.nn.Module`` as a port. These files import torch, and are imported in functions."""
