"""Why a port fails: each failure compared with what known faults would have done.

explanation.py  what is said
sites.py        a site that is wrong by itself: the operation, with every fault that can act there
tensors.py      a tensor that differs: transposed, rounded, from another layer, one bit flipped …
logits.py       nothing but logits: the matched filter
"""
