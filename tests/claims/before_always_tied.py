"""Run in the process that examines transformers: GPT-2 is tied whatever the configuration says."""

from transformers import GPT2LMHeadModel

_load = GPT2LMHeadModel.from_pretrained.__func__


@classmethod
def from_pretrained(cls, *args, **kwargs):
    model = _load(cls, *args, **kwargs)
    model.lm_head.weight = model.transformer.wte.weight
    return model


GPT2LMHeadModel.from_pretrained = from_pretrained
