"""The texts that the claims were gathered from, and those in which they can be looked up."""

from __future__ import annotations

from gpt_verify.claims.claim import Source

_LENS = "interpreting GPT: the logit lens"
_LENS_LINK = "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens"
#: The post and its comments.
LW = Source("nostalgebraist", _LENS, _LENS_LINK, said=True)
#: The comments of one reader there, and the answers to them.
OE = Source("oekenta", f"comments on “{_LENS}”", _LENS_LINK, said=True)
SE = Source(
    "question 36192 and its answers",
    "How does GPT use the same embedding matrix for both input and output? (AI Stack Exchange)",
    "https://ai.stackexchange.com/questions/36192/how-does-gpt-use-the-same-embedding-matrix-for-both-input-and-output",
    said=True,
)
AR = Source("arb8020", "gpt-2 notes", said=True)
#: The published code, which settles what most of the others only describe.
CODE = Source("OpenAI", "gpt-2, src/model.py", "https://github.com/openai/gpt-2")
#: What the port ``openai-tf`` runs. Nobody is to take it for OpenAI's program.
OUR_GRAPH = "a TensorFlow graph that gpt-verify writes anew, operation by operation"
ENCODER = Source("OpenAI", "gpt-2, src/encoder.py", "https://github.com/openai/gpt-2")
README = Source("OpenAI", "gpt-2, README.md", "https://github.com/openai/gpt-2")
PAPER = Source("Radford et al. 2019", "Language Models are Unsupervised Multitask Learners")
TRANSFORMER = Source(
    "Vaswani et al. 2017", "Attention Is All You Need", "https://arxiv.org/abs/1706.03762"
)
GPT3 = Source(
    "Brown et al. 2020",
    "Language Models are Few-Shot Learners",
    "https://arxiv.org/abs/2005.14165",
)
GELU = Source(
    "Hendrycks and Gimpel 2016",
    "Gaussian Error Linear Units (GELUs)",
    "https://arxiv.org/abs/1606.08415",
)
HF = Source(
    "Hugging Face",
    "transformers, models/gpt2/modeling_gpt2.py",
    "https://github.com/huggingface/transformers",
)
GPT1 = Source("Radford et al. 2018", "Improving Language Understanding by Generative Pre-Training")
MINGPT = Source("Karpathy", "minGPT, mingpt/model.py", "https://github.com/karpathy/minGPT")
