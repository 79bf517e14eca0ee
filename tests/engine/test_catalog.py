import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from assay.engine.catalog import (
    DEFAULT_MODEL,
    ModelSource,
    check_folder,
    hash_of_folder,
    list_models,
    load_tokenizer,
    resolve_model,
)
from assay.settings import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_tokenizer(folder: Path, special: list[str], **roles: str) -> None:
    """Twelve words and these special tokens, each of which gets an id after the words."""
    vocabulary = {word: index for index, word in enumerate([f"w{n}" for n in range(12)] + special)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=special, **roles)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tiny"
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, **size)).save_pretrained(folder)
    save_tokenizer(folder, ["<s>", "</s>", "<pad>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return folder


@pytest.fixture
def tiny(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def refused(name: str) -> str:
    """The one line that says why."""
    with pytest.raises(InputError) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_local_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert resolve_model("tiny") == ModelSource("tiny", str(tiny), "local folder")
    assert resolve_model(str(tiny)).path == str(tiny)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object; got list"),
        (lambda folder: (folder / "config.json").write_text("{}"), "has no model_type"),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "holds an adapter"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: shorten(folder / "model.safetensors"), "may be cut short"),
        (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"), "Git LFS pointer"),
        (shard, "lacks model-00002-of-00002.safetensors"),
    ],
)
def test_a_folder_that_lacks_something(harm, said: str, tiny: Path) -> None:
    check_folder(tiny)
    harm(tiny)
    assert said in refused(str(tiny))
    assert str(tiny) in refused(str(tiny))


def test_a_missing_folder_names_the_nearest(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert refused("./tiney").endswith("there is no such folder; did you mean 'tiny'?")
    assert refused(str(tiny.parent / "tin")).endswith(f"did you mean {str(tiny)!r}?")
    assert refused("tinny").startswith("no model 'tinny': it is no folder here; did you mean 'tiny'?")
    assert refused("./elsewhere/there").endswith("there is no such folder, nor elsewhere")
    assert refused("./xyz").endswith("there is no such folder")
    assert "hub id has the form owner/name" in refused("gpt2")
    assert "is a file" in refused("tiny/config.json")


def test_a_hub_id_that_cannot_be_fetched(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tiny.parent)
    assert refused("owner/name").startswith("owner/name is not in the Hugging Face cache and can't be fetched (")
    assert refused("owner/name").endswith("a local folder works too")
    (tmp_path / "runs" / "policy").mkdir(parents=True)
    assert refused("runs/polcy").endswith("did you mean 'runs/policy'?")


def put_in_cache(cache: Path, folder: Path, hub_id: str, commit: str) -> Path:
    """As the hub's client lays it out."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def test_a_cached_hub_model_needs_no_network(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "none"))
    assert [(source.name, source.present) for source in list_models()] == [(DEFAULT_MODEL, False)]

    snapshot = put_in_cache(tmp_path / "hub", tiny, "owner/name", COMMIT)
    found = ModelSource("owner/name", str(snapshot), "Hugging Face hub, owner/name", COMMIT)
    assert resolve_model("owner/name") == found
    assert resolve_model(f"owner/name@{COMMIT}").path == str(snapshot)
    assert len(load_tokenizer("owner/name")) == 15

    half = put_in_cache(tmp_path / "hub", tiny, "owner/half", COMMIT)
    (half / "model.safetensors").unlink()
    listed = list_models()[1:]
    assert listed == [ModelSource("owner/name", str(snapshot), "Hugging Face cache", COMMIT)]
    assert "has no weights" in refused("owner/half")


HUB = """
import http.server, json, pathlib, sys, threading, os

folder, cache, commit = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
sizes = {path.name: path.stat().st_size for path in folder.iterdir()}

class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/api/models/owner/name/revision/main":
            self.send(json.dumps({"id": "owner/name", "sha": commit, "siblings": []}).encode())
        elif path == f"/api/models/owner/name/tree/{commit}":
            files = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            extra = [{"type": "file", "path": "onnx/config.json", "size": 1, "oid": "x"}]
            self.send(json.dumps(files + extra).encode())
        elif path.startswith(f"/owner/name/resolve/{commit}/") and path.rpartition("/")[2] in sizes:
            self.send((folder / path.rpartition("/")[2]).read_bytes(), etag=path.rpartition("/")[2])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def send(self, body, etag="x"):
        self.send_response(200)
        headers = {"Content-Length": len(body), "ETag": json.dumps(etag), "X-Repo-Commit": commit}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HUB_CACHE=cache, HF_HUB_OFFLINE="0")
from assay.engine.catalog import resolve_model
from assay.settings import InputError

source = resolve_model("owner/name")
try:
    resolve_model("owner/other")
except InputError as error:
    refused = str(error)
names = sorted(path.name for path in pathlib.Path(source.path).iterdir())
print(json.dumps([source.path, source.revision, names, refused, "torch" in sys.modules]))
"""


def test_a_hub_model_is_fetched(tiny: Path, tmp_path: Path) -> None:
    """From a hub of our own on this machine, by the real client."""
    (tiny / "pytorch_model.bin").write_bytes(b"the same weights in another format are not fetched")
    command = [sys.executable, "-c", HUB, str(tiny), str(tmp_path / "hub"), COMMIT]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **proxies})
    assert done.returncode == 0, done.stderr
    path, revision, names, refusal, torch = json.loads(done.stdout)
    assert path == str(tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT)
    assert revision == COMMIT
    assert names == sorted(file.name for file in tiny.iterdir() if file.suffix != ".bin")
    assert refusal == "the hub has no model owner/other, or hides it until `hf auth login`; a local folder works too"
    assert torch is False


@pytest.mark.parametrize(
    ("special", "pad"),
    [
        (["<unk>", "<|endoftext|>", "<|pad|>"], "<|pad|>"),
        (["<unk>", "<|endoftext|>", "<|reserved_special_token_0|>"], "<|endoftext|>"),
        (["<unk>", "<|padlock|>", "<|reserved_special_token_0|>"], "<|reserved_special_token_0|>"),
        (["<unk>", "<tool>"], "<unk>"),
    ],
)
@pytest.mark.parametrize("before", [None, "</s>"])
def test_a_pad_that_is_the_eos_is_replaced(special, pad, before, tiny: Path, caplog) -> None:
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": before} if before else {})
    save_tokenizer(tiny, ["<s>", "</s>", *special], **roles)
    with caplog.at_level(logging.WARNING, "assay"):
        tokenizer = load_tokenizer(str(tiny))
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (pad, 14 + special.index(pad))
    assert len(tokenizer) == 14 + len(special)
    assert [record.getMessage() for record in caplog.records] == [
        f"tokenizer of {tiny}: pad token was {before}, is now {pad}"
    ]


def test_a_good_pad_stays(tiny: Path, caplog) -> None:
    assert load_tokenizer(resolve_model(str(tiny))).pad_token == "<pad>"
    assert caplog.records == []


def test_a_token_that_something_uses_is_no_pad(tiny: Path) -> None:
    save_tokenizer(tiny, ["</s>", "<|endoftext|>", "<|reserved_0|>"], eos_token="</s>")
    (tiny / "generation_config.json").write_text('{"eos_token_id": [12, 13]}')  # </s> and <|endoftext|>
    assert load_tokenizer(str(tiny)).pad_token == "<|reserved_0|>"
    (tiny / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|reserved_0|>")
    with pytest.raises(InputError, match="no pad token apart from its EOS '</s>' and no unused special token"):
        load_tokenizer(str(tiny))


def test_code_that_comes_with_a_tokenizer_never_runs(tiny: Path) -> None:
    ran = tiny / "ran"
    (tiny / "custom.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Custom: pass\n")
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Custom", "auto_map": {"AutoTokenizer": ["custom.Custom", "custom.Custom"]}}
    (tiny / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="needs code of its own, which never runs"):
        load_tokenizer(str(tiny))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "merges.txt", "a.model"])
def test_a_folder_is_known_by_weights_and_vocabulary_of_either_form(name, tiny: Path) -> None:
    before = hash_of_folder(str(tiny))
    (tiny / name).write_bytes(b"one")
    one = hash_of_folder(str(tiny))
    (tiny / name).write_bytes(b"other")
    assert len({before, one, hash_of_folder(str(tiny))}) == 3


def test_listing_needs_no_torch() -> None:
    code = "import sys, assay.engine.catalog as c; c.list_models(); print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
