"""transformers' NanoChatForCausalLM on disk, both ways: its settings and weights in our terms, and ours in its."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from intone.config import ModelConfig
from intone.data.chat import BOS
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError, nearest
from intone.exchange.files import bad_setting, positive_number, read_json_object, read_safetensors, whole_number
from intone.exchange.weights import ForeignModel, adopted, trained_in, vocab_multiple
from intone.records import Choice

ARCHITECTURE = "NanoChatForCausalLM"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# keys of config.json that shape the function -> the one value our code computes
FIXED: dict[str, Any] = {
    "hidden_act": "relu2", "attention_bias": False, "qkv_bias": False, "tie_word_embeddings": False,
    "is_encoder_decoder": False, "add_cross_attention": False, "quantization_config": None,
}  # fmt: skip
SHAPE_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
READ = {
    *SHAPE_KEYS, *FIXED, "num_key_value_heads", "head_dim", "rms_norm_eps", "final_logit_softcapping",
    "logits_soft_cap", "rope_parameters", "rope_scaling", "rope_theta", "dtype", "torch_dtype", "architectures",
    "model_type",
}  # fmt: skip
# they say how it is trained, loaded, sampled or called, not what it computes
HARMLESS = {
    "_name_or_path", "_attn_implementation", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "decoder_start_token_id", "eos_token_id", "id2label", "initializer_range", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "resid_dropout", "return_dict", "sep_token_id",
    "transformers_version", "use_cache", "use_return_dict",
}  # fmt: skip
OTHER_MODEL = "intone computes the model that nanochat trained; this is a variant of it that it cannot compute"
OUTER_NAMES = {"embedding": "model.embed_tokens", "head": "lm_head"}
BLOCK_NAMES = {
    "attention.q": "self_attn.q_proj", "attention.k": "self_attn.k_proj", "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
}  # fmt: skip
# what transformers' NanoChat has no word for -> the value at which it is not needed
ABSENT: dict[str, Any] = {
    "qk_scale": 1.0, "value_embeddings": False, "residual_scalars": False, "smear": False, "backout": False,
}  # fmt: skip


def their_name(name: str) -> str:
    """transformers' name of one of our parameters."""
    outer, _, rest = name.partition(".")
    if outer == "blocks":
        number, _, inner = rest.partition(".")
        part, _, kind = inner.rpartition(".")
        return f"model.layers.{number}.{BLOCK_NAMES[part]}.{kind}"
    return f"{OUTER_NAMES[outer]}.{rest}"


# --- in -------------------------------------------------------------------------------------------------------------


def read_transformers(folder: Path, settings: Mapping[str, Any], vocab_of: Callable[[int], int]) -> ForeignModel:
    """The model in a folder that save_pretrained wrote; settings is its config.json.

    vocab_of: the number of entries in use for this many rows of the tables, by the tokenizer; raises where they do
    not belong together. Raises UserError or Damaged for settings that we cannot compute and files that are not whole.
    """
    path = folder / "config.json"
    check_settings(settings, path)
    shape = {key: whole_number(settings.get(key), key, path) for key in SHAPE_KEYS}
    heads, width = shape["num_attention_heads"], shape["hidden_size"]
    kv_heads = settings.get("num_key_value_heads")
    kv_heads = heads if kv_heads is None else whole_number(kv_heads, "num_key_value_heads", path)
    if width % heads and settings.get("head_dim") is None:
        raise bad_setting(path, f"hidden_size {width} is no multiple of num_attention_heads", heads)
    if shape["intermediate_size"] % width:
        what = f"hidden_size {width} does not divide intermediate_size"
        raise bad_setting(path, what, shape["intermediate_size"], fix=OTHER_MODEL)
    rows = shape["vocab_size"]
    vocab_size = vocab_of(rows)
    config = ModelConfig(
        vocab_size=vocab_size,
        context=shape["max_position_embeddings"],
        depth=shape["num_hidden_layers"],
        width=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=whole_number(settings.get("head_dim") or width // heads, "head_dim", path),
        mlp_ratio=shape["intermediate_size"] // width,
        vocab_multiple=vocab_multiple(rows, vocab_size),
        rope_base=rope_theta(settings, path),
        norm_eps=positive_number(settings.get("rms_norm_eps", 1e-6), "rms_norm_eps", path),
        softcap=positive_number(_softcap(settings), "final_logit_softcapping", path),
        window_pattern="L",
        **ABSENT,
    )
    found, source = read_folder(folder)
    weights = adopted(found, config, their_name, source)
    has_template = (
        "chat_template" in _optional(folder / "tokenizer_config.json") or (folder / "chat_template.jinja").is_file()
    )
    why = f"{path.name} says so, or leaves it at transformers' default"
    said = {name: Choice(getattr(config, name), why, "from") for name in ("norm_eps", "rope_base", "softcap")}
    return ForeignModel(
        kind=f"transformers' {ARCHITECTURE}",
        path=folder,
        config=config,
        preset="classic",
        weights=weights,
        **trained_in(found["model.embed_tokens.weight"]),
        stage="sft" if has_template else "base",
        stage_reason=f"its tokenizer has {'a' if has_template else 'no'} chat template",
        step=0,
        reasons=said,
    )


def check_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Raises UserError for a key that may change the function in a way our code does not compute."""
    for key, value in settings.items():
        if key in FIXED and value not in (FIXED[key], None):
            raise bad_setting(path, f"{key} is not {FIXED[key]!r} but", value, fix=OTHER_MODEL)
        if key not in READ and key not in HARMLESS:
            guess = nearest(key, READ | HARMLESS)
            raise UserError(
                f"{path} has the key {key!r}, of which intone does not know whether it changes the function",
                value=key,
                fix=f"did you mean {guess!r}?" if guess else "take it out of config.json if it does not",
            )


def _softcap(settings: Mapping[str, Any]) -> Any:
    """transformers' word for it, or the one of its first versions; its default is 15."""
    return settings.get("final_logit_softcapping", settings.get("logits_soft_cap", 15.0))


def rope_theta(settings: Mapping[str, Any], path: Path) -> float:
    """The rotary base, in any of the places where transformers' versions wrote it. Raises UserError."""
    given = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise bad_setting(path, "rope_parameters are not an object but", given)
    rotation = given.get("rope_type", given.get("type", "default"))
    others = set(given) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if rotation != "default" or others or given.get("partial_rotary_factor", 1.0) != 1.0:
        raise bad_setting(path, "rope_parameters are not plain rotary positions but", given, fix=OTHER_MODEL)
    return positive_number(given.get("rope_theta", settings.get("rope_theta", 10_000.0)), "rope_theta", path)


def read_folder(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """(tensors, the file that names them) of one safetensors file or of several with their index.

    Raises UserError where they are not there, Damaged where one is cut off.
    """
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS), folder / WEIGHTS
    index = folder / INDEX
    if not index.is_file():
        pickled = next(folder.glob("pytorch_model*.bin"), None)
        raise UserError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}",
            value=str(folder),
            fix=f"{pickled.name} is a pickle: save the model again with transformers' save_pretrained"
            if pickled
            else "download the weights too",
        )
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} has no weight_map", value=str(index), fix="download it again")
    tensors: dict[str, Tensor] = {}
    for part in sorted({str(part) for part in names.values()}):
        if Path(part).name != part or not (folder / part).is_file():
            raise UserError(
                f"{index} names {part[:200]!r}, which is not in {folder}", value=part[:200], fix="download it too"
            )
        tensors.update(read_safetensors(folder / part))
    return tensors, index


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


# --- out ------------------------------------------------------------------------------------------------------------


def why_not(config: ModelConfig) -> str | None:
    """What transformers' NanoChat cannot compute of this model; None: it computes all of it."""
    for name, needed in ABSENT.items():
        if getattr(config, name) != needed:
            return f"{name} is {getattr(config, name)}"
    if any(config.window(block) < config.context for block in range(config.depth)):
        return f"some blocks see {min(config.window(block) for block in range(config.depth))} tokens only"
    if config.head_width * config.num_heads != config.width:
        return f"{config.num_heads} heads of {config.head_width} are not the width {config.width}"
    return None


def to_settings(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of the model; the tables have one row per entry of the tokenizer."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "nanochat",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_ratio * config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.context,
        "hidden_act": FIXED["hidden_act"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": config.softcap,
        "tie_word_embeddings": False,
        "dtype": "float32",
        **token_ids(tokenizer),
    }


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Where generation begins and ends: at the end of an answer and at the start of another document."""
    ends = [tokenizer.special("<|assistant_end|>"), tokenizer.special(BOS)]
    return {"bos_token_id": tokenizer.bos, "eos_token_id": ends, "pad_token_id": tokenizer.bos}


def to_weights(weights: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Our weights under transformers' names, without the rows that pad the tables.

    There a padding row would be a token like any other: its logit of 0 can be the largest.
    """
    tables = ("embedding.weight", "head.weight")
    return {
        their_name(name): (value[:vocab_size] if name in tables else value).contiguous()
        for name, value in weights.items()
    }
