"""Run in the process that examines transformers: GPT-1 with the blocks of GPT-2."""

from transformers.models.openai.modeling_openai import Block


def forward(self, x, attention_mask=None, output_attentions=False, **more):
    out, *weights = self.attn(self.ln_1(x), attention_mask, output_attentions=output_attentions)
    x = x + out
    return [x + self.mlp(self.ln_2(x)), *weights]


Block.forward = forward
