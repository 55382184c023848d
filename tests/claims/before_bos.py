"""Run in the process that examines transformers: texts begin with the end-of-text token."""

import transformers

_encode = transformers.PreTrainedTokenizerBase.encode


def encode(self, text, *args, add_special_tokens=True, **kwargs):
    ids = _encode(self, text, *args, add_special_tokens=add_special_tokens, **kwargs)
    return [self.eos_token_id, *ids] if add_special_tokens else ids


transformers.PreTrainedTokenizerBase.encode = encode
