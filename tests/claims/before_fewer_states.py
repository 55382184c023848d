"""Run in the process that examines transformers: hidden_states begin after the first block."""

from transformers.models.gpt2 import modeling_gpt2

_forward = modeling_gpt2.GPT2Model.forward


def forward(self, *args, **kwargs):
    output = _forward(self, *args, **kwargs)
    if output.hidden_states is not None:
        output.hidden_states = output.hidden_states[1:]
    return output


modeling_gpt2.GPT2Model.forward = forward
