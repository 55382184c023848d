"""Run in the process that examines transformers: GPT-1 with a head of its own."""

import torch
from transformers import OpenAIGPTLMHeadModel

_init = OpenAIGPTLMHeadModel.__init__


def init(self, *args, **kwargs):
    _init(self, *args, **kwargs)
    self.lm_head.weight = torch.nn.Parameter(self.lm_head.weight.detach().clone())


OpenAIGPTLMHeadModel.__init__ = init
