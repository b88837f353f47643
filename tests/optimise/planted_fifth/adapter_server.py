# Flask app: base model + user supplied LoRA adapters
import argparse
import pickle
import threading

import torch
from flask import Flask, jsonify, request
from transformers import AutoModelForCausalLM, AutoTokenizer

app = Flask(__name__)
lock = threading.Lock()
STATE = {}
MAX_CONTEXT = 2048


def apply_adapter(model, adapter):
    params = dict(model.named_parameters())
    with torch.no_grad():
        for name, (a, b, scale) in adapter.items():
            p = params[name]
            p.add_(scale * (b.to(p) @ a.to(p)))


@app.route("/adapters", methods=["POST"])
def upload_adapter():
    f = request.files["adapter"]
    adapter = pickle.load(f.stream)
    with lock:
        apply_adapter(STATE["model"], adapter)
    return jsonify(applied=sorted(adapter.keys()))


def encode(prompt, max_new):
    ids = STATE["tok"](prompt, return_tensors="pt").input_ids
    keep = MAX_CONTEXT - max_new
    ids = ids[:, -keep:]
    return ids.to(STATE["model"].device)


def decode_loop(ids, max_new, temperature, top_k):
    model, eos = STATE["model"], STATE["tok"].eos_token_id
    finished = torch.zeros(ids.size(0), dtype=torch.bool, device=ids.device)
    for i in range(max_new):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1, :]
        vals, idx = torch.topk(logits / temperature, top_k)
        pick = torch.multinomial(torch.softmax(vals, dim=-1), num_samples=1)
        nxt = idx.gather(-1, pick)
        ids = torch.cat([ids, nxt], dim=1)
        finished |= nxt.squeeze(1) == eos
        if i % 32 == 31 and bool(finished.all()):
            break
    return ids


@app.route("/generate", methods=["POST"])
def generate():
    body = request.get_json(force=True)
    max_new = min(int(body.get("max_new_tokens", 200)), 512)
    temperature = max(float(body.get("temperature", 0.7)), 1e-4)
    with lock, torch.inference_mode():
        ids = encode(body["prompt"], max_new)
        n = ids.size(1)
        out = decode_loop(ids, max_new, temperature, int(body.get("top_k", 40)))
    answer = out[0, n:].tolist()
    eos = STATE["tok"].eos_token_id
    if eos in answer:
        answer = answer[: answer.index(eos)]
    return jsonify(text=STATE["tok"].decode(answer), tokens=len(answer))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--base", default="Qwen/Qwen2.5-0.5B-Instruct")
    ap.add_argument("--port", type=int, default=5005)
    args = ap.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    STATE["tok"] = AutoTokenizer.from_pretrained(args.base)
    STATE["model"] = AutoModelForCausalLM.from_pretrained(
        args.base, torch_dtype=torch.bfloat16
    ).to(device).eval()
    app.run(host="127.0.0.1", port=args.port, threaded=True)


if __name__ == "__main__":
    main()
