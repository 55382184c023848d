"""Run in the process that examines transformers: what is masked is lowered by 10 only."""

from transformers.models.gpt2 import modeling_gpt2

_forward = modeling_gpt2.GPT2Attention.forward


def forward(self, *args, **kwargs):
    if kwargs.get("attention_mask") is not None:
        kwargs["attention_mask"] = kwargs["attention_mask"].clamp(min=-10.0)
    elif len(args) > 2 and args[2] is not None:
        args = (*args[:2], args[2].clamp(min=-10.0), *args[3:])
    return _forward(self, *args, **kwargs)


modeling_gpt2.GPT2Attention.forward = forward
