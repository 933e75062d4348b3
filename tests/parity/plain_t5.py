"""A program without hanmo: load a folder as T5 twice, once after saving it again, and write the logits.

Usage: plain_t5.py FOLDER OUTPUT RECORDED
"""

import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

folder, output, recorded = sys.argv[1:]
cases = load_file(recorded)
inputs = {
    "input_ids": cases["padded/enc_input_ids"].long(),
    "attention_mask": cases["padded/enc_attention_mask"][:, 0, 0].long(),
    "decoder_input_ids": cases["padded/dec_input_ids"].long(),
}


def logits(path: str) -> torch.Tensor:
    model = T5ForConditionalGeneration.from_pretrained(path).eval()
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr(), "the head is tied to the embedding"
    with torch.no_grad():
        result = model(**inputs).logits
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        other = T5ForConditionalGeneration.from_pretrained(again).eval()
        with torch.no_grad():
            results["saved and loaded again"] = other(**inputs).logits
    return result


results: dict[str, torch.Tensor] = {}
results["loaded"] = logits(folder)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert tokenizer("你好", "")["input_ids"][-1] == tokenizer.bos_token_id
assert not any(name.split(".")[0] == "hanmo" for name in sys.modules), "hanmo was imported"
save_file(results, output)
