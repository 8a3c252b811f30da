"""Open a teacher: a causal language model split into its body (tokens to hidden states) and its head (to logits).

Not for what is kept of the logits: that is stage1_teacher/selection.py.
Legend: B windows, L tokens, D width, N positions, C positions of one chunk, V vocabulary.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.manifest import Teacher
from shared.errors import UsageError
from shared.files import sha256_file
from shared.memory import is_out_of_memory
from shared.retry import retrying
from shared.tokenizer import check_model_vocabulary, why_not_opened
from stage1_teacher.config import TeacherConfig
from stage1_teacher.quantisation import asked_for, require_plain_head, too_small, what_it_is, what_waits

PROBE_TOLERANCE = 0.05  # relative to the spread of the logits; bfloat16 rounds to 0.4 %


@dataclass(frozen=True)
class TeacherModel:
    """A teacher ready to read.

    Attributes:
        body: the model without its head, in eval mode.
        head_weight_VD: on the device where the head works. float32; a GPU keeps bfloat16 as it is, and adds up in float32.
        head_bias_V: float32, or None.
        softcap: logits become softcap * tanh(logits / softcap), as in Gemma 2; None for most.
        facts: who it is, for the manifest.
        head: the model's own head, for the bare forward pass that a capture is compared with; None leaves that out.
        positions: tokens it can read at once; None names no bound.
    """

    body: Any
    head_weight_VD: Tensor
    head_bias_V: Tensor | None
    softcap: float | None
    facts: Teacher
    head: Any = None
    positions: int | None = None

    @property
    def vocab_size(self) -> int:
        """Rows of the head: at least the tokenizer's size."""
        return int(self.head_weight_VD.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the head works, and all that is made of its logits."""
        return self.head_weight_VD.device

    def hidden(self, tokens_BL: Tensor) -> Tensor:
        """Last hidden states [B, L, D], after the final norm.

        Without a mask: every position sees what is before it and nothing after, so padding on the right reaches no window,
        and attention may take its fastest way.
        """
        device = _first_device(self.body)
        output = self.body(input_ids=tokens_BL.to(device, non_blocking=True), use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden.to(self.device)

    def bare(self, tokens_BL: Tensor) -> None:
        """The forward pass as transformers does it, logits of the whole batch included; nothing is kept."""
        self.head(self.hidden(tokens_BL))

    def logits(self, hidden_CD: Tensor, out_CV: Tensor | None = None) -> Tensor:
        """float32 logits, in `out_CV` if given: bfloat16's steps are 0.125 at 16..32, too coarse for probabilities."""
        logits_CV = self._products(hidden_CD, out_CV)
        if self.head_bias_V is not None:
            logits_CV.add_(self.head_bias_V)
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_CV

    def _products(self, hidden_CD: Tensor, out_CV: Tensor | None) -> Tensor:
        if self.head_weight_VD.dtype == torch.bfloat16:  # torch multiplies bfloat16 into float32 on GPUs alone
            logits_CV = torch.mm(hidden_CD.bfloat16(), self.head_weight_VD.T, out_dtype=torch.float32)
            return logits_CV if out_CV is None else out_CV.copy_(logits_CV)
        with exact_products(self.facts.dtype):
            return torch.mm(hidden_CD.float(), self.head_weight_VD.T, out=out_CV)


def _first_device(body: Any) -> torch.device:
    """Where token ids go in. Weights that wait in CPU memory or on the disk show as `meta`; their hook knows where to."""
    embedding = body.get_input_embeddings()
    device: torch.device = embedding.weight.device
    return torch.device(embedding._hf_hook.execution_device) if device.type == "meta" else device


@contextmanager
def exact_products(dtype: str) -> Iterator[None]:
    """Where both factors are bfloat16 values, bfloat16 units (TF32 ones on a GPU) that add up in float32 lose nothing.

    "medium" lets float32 products run on them: 2.5 times faster here, the same logits to 2e-6. A float32 teacher keeps
    float32 products.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype == "bfloat16" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def load_teacher(config: TeacherConfig) -> TeacherModel:
    """Open the teacher and check that its head alone reproduces its logits.

    Raises:
        UsageError: as `open_model`, or logits that are not a linear function of the last hidden state (up to a bias and a
            soft cap).
    """
    return split(open_model(config), config)


def require_fit(teacher: TeacherModel, tokenizer_size: int, longest: int) -> None:
    """The teacher must have a row for every token and a position for every token of the longest window; 0: not known.

    Raises:
        UsageError: it has not.
    """
    check_model_vocabulary(tokenizer_size, teacher.vocab_size)
    if teacher.positions is not None and longest > teacher.positions:
        what, do = f"teacher {teacher.facts.id}", f"set windows.max_length to {teacher.positions} or less"
        raise UsageError(what, expected=f"positions for windows of {longest} tokens", got=str(teacher.positions), do=do)


def open_model(config: TeacherConfig) -> Any:
    """The whole model in eval mode, as transformers gives it: safetensors alone, no code of its own.

    Raises:
        UsageError: no such model, gated, no safetensors weights, too big for its card, or a package is missing.
    """
    from transformers import AutoModelForCausalLM

    local = Path(config.model).is_absolute()
    if local:
        _require_weights(Path(config.model))
    if config.device_map.startswith("cuda") and not torch.cuda.is_available():
        do = "set teacher.device_map: cpu, or install torch for this GPU"
        raise UsageError("teacher.device_map", expected="a GPU that torch sees", got="none", do=do)
    quantisation = asked_for(config)
    asked = {} if quantisation is None else {"quantization_config": quantisation}
    open_it = partial(
        AutoModelForCausalLM.from_pretrained,
        config.model,
        revision=config.revision,
        dtype=getattr(torch, config.dtype),
        device_map=config.device_map,
        attn_implementation=config.attention,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=local,
        **asked,
    )
    try:
        model = retrying(f"teacher {config.model}", open_it).eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise _unopened(config, error, local=local) from None
    if slow := what_waits(getattr(model, "hf_device_map", {})):
        print(f"teacher {Path(config.model).name}: {slow}", file=sys.stderr)
    return model


def _unopened(config: TeacherConfig, error: Exception, *, local: bool) -> UsageError:
    """What was wrong, and the way out."""
    what = f"teacher {Path(config.model).name if local else config.model}"
    text = str(error)
    if is_out_of_memory(error) or "dispatched on the CPU or the disk" in text:
        return too_small(what, None, config)
    if "flash" in text.lower() and isinstance(error, (ImportError, ValueError)):
        do = "install flash-attn for this GPU, or set teacher.attention: sdpa"
        return UsageError(what, expected="an installed flash-attn that knows this model", got=text, do=do)
    if "scaled_dot_product_attention" in text:
        return UsageError(what, expected="a model that attends by sdpa", got=text, do="set teacher.attention: eager")
    if isinstance(error, ImportError):
        return UsageError(what, expected="the packages its weights need", got=text, do="install what is named there")
    got, do = (text, "repair the directory") if local else why_not_opened(error)
    return UsageError(f"teacher {config.model}", expected="a causal LM", got=got, do=do)


def _require_weights(directory: Path) -> None:
    what, do = f"teacher {directory}", "name a directory in Hugging Face layout"
    if not directory.is_dir():
        raise UsageError(what, expected="a model directory", got="no such directory", do=do)
    if not (directory / "config.json").is_file():
        raise UsageError(what, expected="a config.json", got="none", do=do)
    if not any(directory.glob("*.safetensors")):
        got = ", ".join(sorted(path.name for path in directory.iterdir())[:4])
        raise UsageError(what, expected="weights in *.safetensors", got=got, do="save the model with safetensors")


def split(model: Any, config: TeacherConfig) -> TeacherModel:
    """A model that is open, as body and head.

    Raises:
        UsageError: its head has no plain weights, or is not all there is between hidden states and logits.
    """
    head, facts = model.get_output_embeddings(), _facts(model, config)
    require_plain_head(head, facts.id)
    weight_VD, bias = _weights_of(head), getattr(head, "bias", None)
    keeps = weight_VD.dtype == torch.bfloat16 and weight_VD.device.type == "cuda"
    teacher = TeacherModel(
        body=model.base_model,
        head_weight_VD=weight_VD if keeps else weight_VD.float(),
        head_bias_V=None if bias is None else bias.detach().float(),
        softcap=getattr(model.config, "final_logit_softcapping", None),
        facts=facts,
        head=head,
        positions=getattr(model.config, "max_position_embeddings", None),
    )
    _require_linear_head(model, teacher)
    return teacher


def _weights_of(head: Any) -> Tensor:
    """The head's weights, [V, D]; those that accelerate keeps elsewhere are fetched, once."""
    weight_VD: Tensor = head.weight.detach()
    if weight_VD.device.type != "meta":
        return weight_VD
    hook = head._hf_hook
    fetched: Tensor = hook.weights_map["weight"].to(hook.execution_device)
    return fetched


def _require_linear_head(model: Any, teacher: TeacherModel) -> None:
    """Some models scale or mix their logits after the head; then our chunked head would silently teach something else."""
    tokens_BL = torch.arange(8).unsqueeze(0) % teacher.vocab_size
    with torch.inference_mode():
        ours_NV = teacher.logits(teacher.hidden(tokens_BL)[0])
        theirs_NV = model(tokens_BL.to(_first_device(teacher.body))).logits[0].float().to(ours_NV.device)
    error = float((ours_NV - theirs_NV).abs().max() / theirs_NV.std())
    if error > PROBE_TOLERANCE:
        raise UsageError(
            f"teacher {teacher.facts.id}",
            expected="logits that its head computes from the last hidden state",
            got=f"a difference of {error:.2f} standard deviations",
            do="use a teacher with a plain linear head",
        )


def _facts(model: Any, config: TeacherConfig) -> Teacher:
    path = Path(config.model)
    commit = getattr(model.config, "_commit_hash", None)
    return Teacher(
        id=path.name if path.is_absolute() else config.model,
        revision=commit,
        weights=_weights_digest(path) if path.is_absolute() else str(commit),
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        dtype=config.dtype,
        quantisation=what_it_is(model),
    )


def _weights_digest(directory: Path) -> str:
    """One hash for a local teacher: over the name and the hash of each weights file."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()
