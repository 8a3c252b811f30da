"""Tokenizers: open one, tell two apart, and turn a document into token ids.

Not for windows (shared/windows.py) and not for generation prompts (eval). A teacher, its cache and its students must
share one tokenizer to the last merge, because ids are all that the cache keeps; the fingerprint catches a mismatch.
Legend: n tokens of one document.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from shared.config import StrictModel
from shared.errors import UsageError
from shared.retry import retrying

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = npt.NDArray[np.int32]

# Strings that tell tokenizers apart when their vocabularies agree: spaces, tabs, digits, case, accents in composed and
# decomposed form, other scripts, an emoji, CRLF, long words, code. Changing one changes every fingerprint.
PROBES = (
    "def add(a, b):\n    return a + b\n",
    "\tif x >= 10_000 and not y:\r\n\t\tprint(f'{x:>8.3f}')\r\n",
    "    class  HTTPServerError2(Exception): pass   # TODO",
    "naive nai\u0308ve na\u00efve \u00c5ngstr\u00f6m \ufb01 \u2460 \u212b",
    "\u4e2d\u6587 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f600",
    "0 1 12 123 1234 3.14159 0x7fff 1e-9",
    "internationalization antidisestablishmentarianism camelCaseName snake_case_name",
    " leading, trailing and  double  spaces \n\n\n",
)


class TokenizerFingerprint(StrictModel):
    """What makes a tokenizer the same one; stored in a cache's manifest and in a checkpoint's run.json."""

    size: int = Field(description="tokens, added ones included: len(tokenizer)")
    vocab_sha256: str = Field(description="sha256 over every token and its id, in the order of tokens")
    bos: int | None = Field(description="id of the begin-of-text token")
    eos: int | None = Field(description="id of the end-of-text token")
    pad: int | None = Field(description="id of the padding token; recorded, not compared")
    unk: int | None = Field(description="id of the unknown token")
    special: dict[str, int] = Field(description="every special token and its id")
    probe_sha256: str = Field(description="sha256 over the ids of fixed probe strings: merges, normaliser, added BOS")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files into `folder`.

    Raises:
        OSError: the disk is full; the tokenizers library says so in words only, in a plain Exception.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        raise


def load_tokenizer(ref: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Open a fast tokenizer from a directory or the hub; code that came with it is never run.

    Args:
        ref: a directory (as shared.config.ModelRef leaves it: absolute) or a hub id.
        revision: hub commit or tag.
    Raises:
        UsageError: no such tokenizer, or only a slow one (without tokenizer.json there are no offsets).
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    local = Path(ref).is_dir()
    if Path(ref).is_absolute():
        _require_tokenizer_files(Path(ref))
    try:
        tokenizer = retrying(
            f"tokenizer {ref}",
            lambda: AutoTokenizer.from_pretrained(
                ref, revision=revision, use_fast=True, trust_remote_code=False, local_files_only=local
            ),
        )
    except Exception as error:  # noqa: BLE001 (tokenizers raises a plain Exception for a damaged tokenizer.json)
        got, do = (f"{type(error).__name__}: {error}", "repair the directory") if local else why_not_opened(error)
        raise UsageError(f"tokenizer {ref}", expected="one that transformers opens", got=got, do=do) from None
    if not tokenizer.is_fast:
        do = "save it once with tokenizers support so that it has a tokenizer.json"
        raise UsageError(f"tokenizer {ref}", expected="a fast tokenizer", got=type(tokenizer).__name__, do=do)
    _add_promised_bos(tokenizer, get_tokenizer_config(ref, revision=revision, local_files_only=local))
    return tokenizer


def _add_promised_bos(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> None:
    """Let the tokenizer add the BOS that its tokenizer_config.json asks for (`add_bos_token`).

    transformers 4 did; transformers 5 leaves it out where tokenizer.json itself adds none, as DeepSeek's do not, and the
    model then reads every text as it never did in its training.
    """
    from tokenizers.processors import Sequence, TemplateProcessing

    token, index = tokenizer.bos_token, tokenizer.bos_token_id
    if config.get("add_bos_token") is not True or token is None or front_of(tokenizer).size:
        return
    backend = tokenizer.backend_tokenizer
    adding = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, index)]
    )
    before = backend.post_processor
    backend.post_processor = adding if before is None else Sequence([before, adding])


def front_of(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Ids that the tokenizer puts before every text, int32: its BOS, or nothing."""
    encoded = _encode(tokenizer, "a")
    front = itertools.takewhile(
        lambda pair: pair[1] is None, zip(encoded["input_ids"], encoded.sequence_ids(0), strict=True)
    )
    return np.asarray([index for index, _ in front], dtype=np.int32)


def why_not_opened(error: BaseException) -> tuple[str, str]:
    """(What the hub said, what to do) of a failed attempt to open something by its hub id."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    causes, cause = [error], error.__cause__ or error.__context__
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, GatedRepoError) for one in causes):
        login = "accept its terms on its hub page, then log in: `hf auth login`, or set HF_TOKEN"
        return "a gated one, and no token of somebody who was let in", login
    if any(isinstance(one, RevisionNotFoundError) for one in causes):
        return "no such revision", "check the revision: a branch, a tag or a full commit"
    if any(isinstance(one, RepositoryNotFoundError) for one in causes):
        return "no such repository, or a private one", "check the name; for a private one log in with `hf auth login`"
    return f"{type(error).__name__}: {error}", "check the name and the network, or give a local directory as ./name"


def _require_tokenizer_files(directory: Path) -> None:
    if not directory.is_dir():
        raise UsageError(f"tokenizer {directory}", expected="a directory", got="nothing there", do="correct the path")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        got = ", ".join(sorted(entry.name for entry in directory.iterdir())[:5]) or "an empty directory"
        do = "copy tokenizer.json and tokenizer_config.json there, or name another tokenizer"
        raise UsageError(f"tokenizer {directory}", expected="a tokenizer.json", got=got, do=do)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> TokenizerFingerprint:
    """The facts by which `require_same` compares tokenizers."""
    added = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return TokenizerFingerprint(
        size=len(tokenizer),
        vocab_sha256=_digest(sorted(tokenizer.get_vocab().items())),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        unk=tokenizer.unk_token_id,
        special=dict(sorted((added | named).items())),
        probe_sha256=_digest([_encode(tokenizer, probe)["input_ids"] for probe in PROBES]),
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def require_same(expected: TokenizerFingerprint, got: TokenizerFingerprint, *, what: str, do: str) -> None:
    """Refuse a tokenizer that is not the expected one.

    The padding token is left out: nothing of ours is padded, and many tools name one when they save.
    Args:
        what: the thing with the wrong tokenizer, by name.
        do: the way out.
    Raises:
        UsageError: names the first fact that differs.
    """
    padding = {token for token, index in (expected.special | got.special).items() if index in (expected.pad, got.pad)}
    facts: list[tuple[str, Any, Any]] = [
        (name, getattr(expected, name), getattr(got, name)) for name in ("size", "bos", "eos", "unk")
    ]
    for token in sorted((expected.special.keys() | got.special.keys()) - padding):
        facts.append((f"special token '{token}'", expected.special.get(token), got.special.get(token)))
    facts.append(("vocabulary", expected.vocab_sha256[:12], got.vocab_sha256[:12]))
    facts.append(("splitting of the probe strings", expected.probe_sha256[:12], got.probe_sha256[:12]))
    for name, wanted, found in facts:
        if wanted != found:
            raise UsageError(f"{what}: tokenizer", expected=f"{name} {wanted}", got=str(found), do=do)


def check_model_vocabulary(tokenizer_size: int, model_vocab: int) -> None:
    """A model may have more rows than the tokenizer has tokens (padded vocabulary), never fewer.

    Raises:
        UsageError: ids of this tokenizer would fall outside the model.
    """
    if tokenizer_size > model_vocab:
        raise UsageError(
            "tokenizer",
            expected=f"at most {model_vocab} tokens, the model's vocabulary",
            got=str(tokenizer_size),
            do="use the tokenizer that the model was trained with",
        )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Any:
    """Ids and offsets with the tokenizer's own BOS; a special token spelled out in `text` is split like other text."""
    return tokenizer(
        text, add_special_tokens=True, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )


def encode_document(tokenizer: PreTrainedTokenizerBase, text: str, prompt_chars: int) -> tuple[Tokens, int]:
    """Token ids of one document, end-of-text included.

    BOS stands in front exactly when the tokenizer itself adds one (Llama does, StarCoder2 does not); an EOS or SEP that
    it adds is replaced by one EOS. "<|endoftext|>" written out in the text does not become the special token.
    Args:
        text: the document, prompt first.
        prompt_chars: leading characters that are prompt.
    Returns:
        int32 [n] ids, and the leading tokens that are prompt: those that end within it (a token that straddles the
        border belongs to the solution, because it must be predicted), and BOS if there is a prompt at all.
    Raises:
        UsageError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"tokenizer {tokenizer.name_or_path}",
            expected="an end-of-text token",
            got="none",
            do="set eos_token in its tokenizer_config.json, so that a student can learn to stop",
        )
    encoded = _encode(tokenizer, text)
    from_text = [i for i, part in enumerate(encoded.sequence_ids(0)) if part is not None]  # others: added around it
    first, last = (from_text[0], from_text[-1] + 1) if from_text else (0, 0)
    ids = [*encoded["input_ids"][:last], tokenizer.eos_token_id]
    prompt_tokens = first if prompt_chars else 0
    for _, end in encoded["offset_mapping"][first:last]:
        if not prompt_chars or end > prompt_chars:
            break
        prompt_tokens += 1
    return np.asarray(ids, dtype=np.int32), prompt_tokens
