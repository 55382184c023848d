"""Directories as people have them, tiny and with their true keys; what must come out of each.

``docs/checkpoints.md`` shows these tables (``scripts/checkpoints_page.py``), and
``tests/checkpoint/test_file_layouts.py`` opens each of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundles import write_bundle
from huggingface_directory import CONFIG, SIZES, State, state, tensors, write

from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.gpt1 import BLOCK
from gpt_verify.reference import Config, tensor_table

GPT1 = Config(11, 7, 6, 3, 2, architecture="openai-gpt")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """One directory.

    Attributes:
        what: what lies there, in a line of the page.
        make: fills the directory, and returns what is written after ``--checkpoint``.
        said: the remarks, a line each, where it is opened; the refusal where it is not. DIR stands
            for the directory.
        opened: whether it is.
        config: the model that comes out.
        ignore: ``--ignore-key``.
        rounded: numbers differ from those of the others by rounding.
    """

    what: str
    make: Callable[[Path], Path | None]
    said: str = ""
    opened: bool = True
    config: Config = CONFIG
    ignore: tuple[str, ...] = ()
    rounded: bool = False


# --- Hugging Face ---------------------------------------------------------------------------------

#: As the hub's gpt2 has it, but for the sizes.
HUB: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 10,
    "embd_pdrop": 0.1,
    "eos_token_id": 10,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 7,
    **{key: SIZES[key] for key in ("n_embd", "n_head", "n_layer", "n_positions")},
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 11,
}
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707\n"
    "size 548105171\n"
)


def config_json(directory: Path, without: tuple[str, ...] = (), **keys: Any) -> None:
    said = {key: value for key, value in {**HUB, **keys}.items() if key not in without}
    (directory / "config.json").write_text(json.dumps(said, indent=2))


def hub(
    values: Callable[[], Mapping[str, torch.Tensor]] = state, **keys: Any
) -> Callable[[Path], None]:
    """The hub's files with other tensors or keys."""

    def make(directory: Path) -> None:
        write(directory, dict(values()))
        config_json(directory, **keys)

    return make


def masked(prefix: str) -> State:
    values = state(prefix)
    for layer in range(2):
        values[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 7, 7).tril()
    return values


def gpt2_of_the_hub(directory: Path) -> None:
    hub(lambda: masked(""))(directory)
    for name in ("README.md", ".gitattributes", "generation_config.json", "tokenizer_config.json"):
        (directory / name).write_text("{}")
    for name in ("64.tflite", "flax_model.msgpack", "rust_model.ot", "tf_model.h5"):
        (directory / name).write_bytes(b"not read")
    torch.save(masked(""), directory / "pytorch_model.bin")
    (directory / "onnx").mkdir()


def gpt1_state(prefix: str = "") -> State:
    names = {"wte": "tokens_embed.weight", "wpe": "positions_embed.weight"}
    found = {}
    for name, value in tensors(GPT1).items():
        layer, _, rest = name.partition("/")
        leaf = {"w": "weight", "g": "weight", "b": "bias"}.get(rest[-1:], "")
        scope = rest[:-2].replace("/", ".")
        found[prefix + names.get(name, f"h.{layer[1:]}.{scope}.{leaf}")] = torch.from_numpy(value)
    return found


def openai_gpt_of_the_hub(directory: Path) -> None:
    values = gpt1_state()
    values["position_ids"] = torch.arange(7)
    write(directory, values)
    without = ("activation_function", "bos_token_id", "eos_token_id")
    config_json(
        directory,
        without,
        afn="gelu",
        architectures=["OpenAIGPTLMHeadModel"],
        model_type="openai-gpt",
        n_special=0,
        predict_special_tokens=True,
    )


def saved_by_transformers(directory: Path) -> None:
    """By the installed version, in its own words."""
    from transformers import GPT2Config, GPT2LMHeadModel

    made = GPT2Config(**SIZES, bos_token_id=10, eos_token_id=10)
    model = GPT2LMHeadModel(made)
    model.load_state_dict({**state(), "lm_head.weight": state()["transformer.wte.weight"]})
    model.save_pretrained(directory)


def in_shards(directory: Path, first: str = "pytorch_model-00001-of-00002.bin") -> None:
    values = state()
    names = list(values)
    files = {first: names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in files.items():
        torch.save({name: values[name] for name in part}, directory / file)
    where = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config_json(directory)


def a_shard_missing(directory: Path) -> None:
    in_shards(directory)
    (directory / "pytorch_model-00002-of-00002.bin").unlink()


def wrapped(*prefixes: str) -> Callable[[Path], None]:
    return hub(lambda: {"".join(prefixes) + name: value for name, value in state().items()})


def with_heads(*names: str) -> Callable[[], State]:
    return lambda: state() | {name: torch.ones(1, 6) for name in names}


def beside_a_checkpoint(directory: Path) -> None:
    hub()(directory)
    (directory / "checkpoint").mkdir()
    (directory / "checkpoint-500").mkdir()


def model_type_missing(directory: Path) -> None:
    write(directory, state(""))
    without = ("model_type", "architectures", "activation_function")
    config_json(directory, without, output_past=True, n_special=0)


def in_the_hubs_cache(directory: Path) -> Path:
    blobs = directory / "models--openai-community--gpt2" / "blobs"
    snapshot = blobs.parent / "snapshots" / "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    blobs.mkdir(parents=True)
    hub()(snapshot.parent.parent / "made")
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((blobs.parent / "made").iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def linked_elsewhere(directory: Path) -> None:
    elsewhere = directory.with_name("elsewhere")
    elsewhere.mkdir()
    hub()(directory)
    (directory / "model.safetensors").rename(elsewhere / "model.safetensors")
    (directory / "model.safetensors").symlink_to(elsewhere / "model.safetensors")


def a_file_of_it(directory: Path) -> Path:
    hub()(directory)
    return directory / "model.safetensors"


def a_pointer(name: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        hub()(directory)
        (directory / "model.safetensors").unlink()
        (directory / name).write_text(POINTER)

    return make


class Runs:
    """What a pickle of a whole module is: a class, which is code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def code(directory: Path) -> None:
    config_json(directory)
    torch.save({"wte.weight": Runs()}, directory / "pytorch_model.bin")


def weights_alone(name: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        config_json(directory)
        (directory / name).write_bytes(b"another format")

    return make


def in_float64(directory: Path) -> None:
    values = {name: value.double() + 1e-9 for name, value in state().items()}
    write(directory, values)
    config_json(directory)


OPENED_HF = (
    Layout(
        "`gpt2`, `gpt2-medium` of the hub: names without a prefix; masks; other files beside",
        gpt2_of_the_hub,
    ),
    Layout(
        "`distilgpt2` of the hub: names with a prefix; masks; labels in `config.json`",
        hub(
            lambda: masked("transformer."),
            _num_labels=1,
            id2label={"0": "LABEL_0"},
            label2id={"LABEL_0": 0},
        ),
    ),
    Layout("`openai-gpt` of the hub", openai_gpt_of_the_hub, config=GPT1),
    Layout("what transformers saves today", saved_by_transformers),
    Layout(
        "`n_ctx` of a training recipe",
        hub(n_ctx=4),
        "config.json: n_ctx = 4 is ignored: n_positions = 7 decides",
    ),
    Layout(
        "who made it, and when",
        hub(author="A. U. Thor", created_date="2023-05-01", license="mit", _name_or_path="gpt2"),
        "config.json: ignored, as saying nothing of the function: author, created_date, license",
    ),
    Layout(
        "keys of another family that are switched off, or say what the sizes say",
        hub(rope_scaling=None, sliding_window=None, head_dim=2),
        "config.json: ignored, as saying nothing of the function: rope_scaling, sliding_window, "
        "head_dim",
    ),
    Layout(
        "a key that nobody knows, with `--ignore-key my_key`",
        hub(my_key=3),
        "config.json: ignored, as --ignore-key says: my_key = 3",
        ignore=("my_key",),
    ),
    Layout("`pytorch_model.bin` in shards", in_shards),
    *(
        Layout(
            f"weights saved under `{''.join(prefixes)}`",
            wrapped(*prefixes),
            "model.safetensors: 28 of 28 names are read without what wraps the model in them: "
            f"{''.join(prefixes)}transformer.h.0.attn.c_attn.bias as "
            "transformer.h.0.attn.c_attn.bias",
        )
        for prefixes in (("_orig_mod.",), ("module.",), ("model.",), ("module.", "_orig_mod."))
    ),
    Layout("`checkpoint/`, `checkpoint-500/` of training beside it", beside_a_checkpoint),
    *(
        Layout(f"`architectures`: {name}", hub(architectures=[name]))
        for name in ("TFGPT2LMHeadModel", "FlaxGPT2LMHeadModel", "GPT2Model")
    ),
    Layout(
        "`GPT2DoubleHeadsModel`",
        hub(
            with_heads("multiple_choice_head.summary.weight"),
            architectures=["GPT2DoubleHeadsModel"],
        ),
        "model.safetensors: ignored, as the language model never reads it: "
        "multiple_choice_head.summary.weight",
    ),
    Layout(
        "a value head beside the language model's",
        hub(with_heads("v_head.summary.weight", "v_head.summary.bias")),
        "model.safetensors: ignored, as the language model never reads it: "
        "v_head.summary.bias, v_head.summary.weight",
    ),
    Layout(
        "`GPT2ForSequenceClassification`",
        hub(with_heads("score.weight"), architectures=["GPT2ForSequenceClassification"]),
        "model.safetensors: ignored, as the language model never reads it: score.weight",
    ),
    Layout(
        "no `model_type`, as in 2019",
        model_type_missing,
        "config.json: model_type is missing; taken for gpt2 by the names of its tensors",
    ),
    Layout(
        "float64",
        in_float64,
        "model.safetensors: transformer.h.0.attn.c_attn.bias, transformer.h.0.attn.c_attn.weight, "
        "transformer.h.0.attn.c_proj.bias and 25 more are float64, and are rounded to float32",
        rounded=True,
    ),
    Layout("links into the hub's cache", in_the_hubs_cache),
    Layout("a file of it in place of the directory", a_file_of_it),
)

REFUSED_HF = (
    Layout(
        "`n_positions` that is not that of the table",
        hub(n_positions=8),
        "DIR/config.json: n_positions = 8, but transformer.wpe.weight in model.safetensors is "
        "[7, 6], which makes it 7",
        opened=False,
    ),
    Layout(
        "a key that alters the function",
        hub(rope_theta=10000.0),
        "DIR/config.json: rope_theta = 10000.0: alters the function, and is not modelled",
        opened=False,
    ),
    Layout(
        "a key that nobody knows",
        hub(my_key=3),
        "DIR/config.json: unknown key: my_key = 3; where it does not alter what is computed: "
        "--ignore-key my_key",
        opened=False,
    ),
    Layout(
        "a number in the wrong form",
        hub(n_head=12.0),
        "DIR/config.json: n_head = 12.0 is not an integer",
        opened=False,
    ),
    Layout(
        "another family",
        hub(model_type="falcon"),
        'DIR/config.json: model_type = "falcon" is a family that is not supported; what can be '
        f"judged: gpt2, openai-gpt, {', '.join(FAMILIES)}",
        opened=False,
    ),
    Layout(
        "a class that is not transformers'",
        hub(architectures=["GPT2WithRotary"]),
        'DIR/config.json: architectures = ["GPT2WithRotary"]: "GPT2WithRotary" is no class of '
        "transformers for gpt2, and may compute something else; where it does not: "
        "--ignore-key architectures",
        opened=False,
    ),
    *(
        Layout(
            f"a Git LFS pointer: `{name}`",
            a_pointer(name),
            f"DIR/{name}: a Git LFS pointer, which stands for a file of 548,105,171 bytes that was "
            "not fetched: run `git lfs pull` in DIR",
            opened=False,
        )
        for name in ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    ),
    Layout(
        "a pickle that is more than tensors",
        code,
        "DIR/pytorch_model.bin: is more than tensors: it asks for builtins.print, which would run "
        "code and is not loaded; save the tensors of its state_dict() as model.safetensors",
        opened=False,
    ),
    Layout(
        "a shard is missing",
        a_shard_missing,
        "DIR/pytorch_model-00002-of-00002.bin: no such file",
        opened=False,
    ),
    Layout(
        "TensorFlow's weights alone",
        weights_alone("tf_model.h5"),
        "DIR: has no weights but tf_model.h5, which is not read; transformers 4 converts it: "
        "from_pretrained(…, from_tf=True).save_pretrained(…)",
        opened=False,
    ),
    Layout(
        "an adapter alone",
        weights_alone("adapter_model.safetensors"),
        "DIR: has no weights but adapter_model.safetensors, which is not read; an adapter has no "
        "weights of the model's own: merge it into its base (peft: merge_and_unload()), and save "
        "that",
        opened=False,
    ),
    Layout(
        "a bias of the head, which the function has not",
        hub(lambda: state() | {"lm_head.bias": torch.zeros(11)}),
        "DIR/model.safetensors: surplus: lm_head.bias",
        opened=False,
    ),
    Layout(
        "a link that leads elsewhere",
        linked_elsewhere,
        "DIR/model.safetensors: is a link to ELSEWHERE/model.safetensors, outside its directory "
        "and the hub's cache; copy the file into the directory",
        opened=False,
    ),
)

# --- OpenAI ---------------------------------------------------------------------------------------


def stored(scope: str = "model/") -> Arrays:
    table = tensor_table(CONFIG)
    return {scope + n: v.reshape(table[n].stored_shape) for n, v in tensors().items()}


def openai(
    values: Callable[[], Arrays] = stored,
    state_says: str = "model.ckpt",
    **hparams: Any,
) -> Callable[[Path], None]:
    """OpenAI's seven files with other variables, another path or other keys."""

    def make(directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        write_bundle(directory / "model.ckpt", values())
        (directory / "model.ckpt.meta").write_bytes(b"a graph, which is not read")
        said = f'model_checkpoint_path: "{state_says}"\nall_model_checkpoint_paths: "x"\n'
        (directory / "checkpoint").write_text(said)
        (directory / "hparams.json").write_text(json.dumps({**CONFIG.as_dict(), **hparams}))
        (directory / "encoder.json").write_text("{}")
        (directory / "vocab.bpe").write_text("#version: 0.2\n")

    return make


def trained() -> Arrays:
    """As a script of fine-tuning saves them with TensorFlow's Adam."""
    values = stored()
    for name, value in stored().items():
        values[f"{name}/Adam"] = values[f"{name}/Adam_1"] = np.zeros_like(value)
    once = {"beta1_power": np.float32(0.9), "beta2_power": np.float32(0.999)}
    return values | {n: np.array(v) for n, v in once.items()} | {"global_step": np.array(7)}


def objects() -> Arrays:
    """As ``tf.train.Checkpoint`` names them; the graph itself is a string, of which nothing is."""
    values = {f"{name}/.ATTRIBUTES/VARIABLE_VALUE": value for name, value in stored().items()}
    return values | {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(1, np.int32)}


def v1(directory: Path) -> None:
    openai()(directory)
    for file in directory.glob("model.ckpt.*"):
        file.unlink()
    (directory / "model.ckpt").write_bytes(b"a table of another kind")


def both(directory: Path) -> None:
    hub()(directory)
    openai()(directory)


def both_and_a_choice(directory: Path) -> Path:
    both(directory)
    return directory / "hparams.json"


def a_link(directory: Path) -> None:
    elsewhere = directory.with_name("elsewhere")
    elsewhere.mkdir()
    openai()(directory)
    name = "model.ckpt.data-00000-of-00001"
    (directory / name).rename(elsewhere / name)
    (directory / name).symlink_to(elsewhere / name)


def a_pointer_of_data(directory: Path) -> None:
    openai()(directory)
    (directory / "model.ckpt.data-00000-of-00001").write_text(POINTER)


def gpt1_published(directory: Path, **hparams: int) -> None:
    """As openai/finetune-transformer-lm has them: ten equal parts, whatever a tensor's bounds."""
    directory.mkdir(exist_ok=True)
    table, values = tensor_table(GPT1), tensors(GPT1)
    names = ["wpe", "wte", *(f"h{layer}/{name}" for layer in range(2) for name in BLOCK)]
    shapes = [list(table[name].stored_shape) for name in names]
    (directory / "params_shapes.json").write_text(json.dumps(shapes))
    numbers = np.concatenate([values[name].reshape(-1) for name in names])
    for number, part in enumerate(np.array_split(numbers, 10)):
        np.save(directory / f"params_{number}.npy", part)
    (directory / "encoder_bpe_40000.json").write_text("{}")
    (directory / "vocab_40000.bpe").write_text("#version: 0.1\n")
    if hparams:
        (directory / "hparams.json").write_text(json.dumps(hparams))


def gpt1_cut(directory: Path) -> None:
    gpt1_published(directory, n_head=3)
    np.save(directory / "params_9.npy", np.load(directory / "params_9.npy")[:-1])


OPENED_OPENAI = (
    Layout("OpenAI's seven files", openai()),
    Layout(
        "Adam's slots, `beta1_power`, `global_step`",
        openai(trained),
        "model.ckpt.index: ignored, as of the training and not of the model: beta1_power, "
        "beta2_power, global_step and 56 more",
    ),
    Layout(
        "variables in another scope",
        openai(lambda: stored("gpt2/")),
        "model.ckpt.index: the variables are in the scope gpt2, and not in model",
    ),
    Layout(
        "variables in no scope",
        openai(lambda: stored("")),
        "model.ckpt.index: the variables are in no scope, and not in model",
    ),
    Layout(
        "the path of the machine that wrote it",
        openai(state_says="/content/models/124M/model.ckpt"),
        "checkpoint: names /content/models/124M/model.ckpt; model.ckpt beside it is read, as of a "
        "moved directory",
    ),
    Layout(
        "a relative path of that machine",
        openai(state_says="models/124M/model.ckpt"),
        "checkpoint: names models/124M/model.ckpt; model.ckpt beside it is read, as of a moved "
        "directory",
    ),
    Layout(
        "float64",
        openai(lambda: {name: value.astype(np.float64) for name, value in stored().items()}),
        "model.ckpt.index: model/h0/attn/c_attn/b, model/h0/attn/c_attn/w, "
        "model/h0/attn/c_proj/b and 25 more are float64, and are rounded to float32",
    ),
    Layout(
        "`hparams.json` with keys of the training",
        openai(attn_pdrop=0.1, res_dropout=0.1, dataset="webtext"),
        "hparams.json: ignored, as saying nothing of the function: res_dropout, dataset\n"
        "hparams.json: ignored, as of the training: attn_pdrop",
    ),
    Layout("both formats, and a file of one", both_and_a_choice),
    Layout(
        "GPT as OpenAI published it",
        gpt1_published,
        "params_shapes.json: no file says n_head; 1 is taken, for heads of at most 64 channels, as "
        'those of GPT. {"n_head": N} in hparams.json says otherwise',
        config=Config(11, 7, 6, 1, 2, architecture="openai-gpt"),
    ),
    Layout(
        "the same with `hparams.json`",
        lambda directory: gpt1_published(directory, n_head=3),
        config=GPT1,
    ),
)

REFUSED_OPENAI = (
    Layout(
        "both formats",
        both,
        "DIR: holds an OpenAI checkpoint (hparams.json) and a Hugging Face one (config.json); say "
        "which: --checkpoint DIR/hparams.json or --checkpoint DIR/config.json",
        opened=False,
    ),
    Layout(
        "an object graph of TensorFlow 2",
        openai(objects),
        "DIR/model.ckpt.index: an object graph of TensorFlow 2 (tf.train.Checkpoint, or Keras), "
        "whose tensors have the names of Python's attributes: save the variables with "
        "tf.compat.v1.train.Saver, or the model with save_pretrained()",
        opened=False,
    ),
    Layout(
        "a checkpoint of the first format, V1",
        v1,
        "DIR/model.ckpt: a V1 checkpoint of TensorFlow, which is not read: restore it with "
        "tf.compat.v1.train.Saver and save it again, which writes V2",
        opened=False,
    ),
    Layout(
        "two models, neither in OpenAI's scope",
        openai(lambda: stored("a/") | stored("b/")),
        "DIR/model.ckpt.index: has 2 models, and none in model: a/wte, b/wte",
        opened=False,
    ),
    Layout(
        "a path to a bundle that is not there",
        openai(state_says="/content/models/124M/model.ckpt-1000"),
        "DIR/checkpoint: names /content/models/124M/model.ckpt-1000, which leads outside its "
        "directory, and model.ckpt-1000.index is not beside it",
        opened=False,
    ),
    Layout(
        "a number in the wrong form",
        openai(n_head=12.0),
        "DIR/hparams.json: n_head = 12.0 is not an integer",
        opened=False,
    ),
    Layout(
        "a key that alters the function",
        openai(n_experts=2),
        "DIR/hparams.json: n_experts = 2: alters the function, and is not modelled",
        opened=False,
    ),
    Layout(
        "a Git LFS pointer",
        a_pointer_of_data,
        "DIR/model.ckpt.data-00000-of-00001: a Git LFS pointer, which stands for a file of "
        "548,105,171 bytes that was not fetched: run `git lfs pull` in DIR",
        opened=False,
    ),
    Layout(
        "a link that leads elsewhere",
        a_link,
        "DIR/model.ckpt.data-00000-of-00001: is a link to "
        "ELSEWHERE/model.ckpt.data-00000-of-00001, outside its directory and the hub's cache; copy "
        "the file into the directory",
        opened=False,
    ),
    Layout(
        "GPT's own files, one of them cut off",
        gpt1_cut,
        "DIR: the files have 1127 numbers, but params_shapes.json has shapes for 1128",
        opened=False,
    ),
)

TABLES = {
    "opened, Hugging Face": OPENED_HF,
    "refused, Hugging Face": REFUSED_HF,
    "opened, OpenAI": OPENED_OPENAI,
    "refused, OpenAI": REFUSED_OPENAI,
}
