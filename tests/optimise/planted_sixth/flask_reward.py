"""Reward model plus chat model behind one small Flask app."""
import base64
import io
import pickle

import torch
from flask import Flask, abort, jsonify, request
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

app = Flask(__name__)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHAT = "HuggingFaceTB/SmolLM2-360M-Instruct"
REWARD = "OpenAssistant/reward-model-deberta-v3-base"

chat_tok = AutoTokenizer.from_pretrained(CHAT)
chat = AutoModelForCausalLM.from_pretrained(CHAT).to(device).eval()
rm_tok = AutoTokenizer.from_pretrained(REWARD)
rm = AutoModelForSequenceClassification.from_pretrained(REWARD).to(device).eval()


def encode_blob(obj):
    return base64.b64encode(pickle.dumps(obj)).decode()


def decode_blob(text):
    return pickle.load(io.BytesIO(base64.b64decode(text)))


class Context:
    """Tokens of one conversation, kept within the window of the model."""

    def __init__(self, window, reserve):
        self.room = window - reserve
        self.ids = []

    def push(self, ids):
        self.ids.extend(ids)
        if len(self.ids) > self.room:
            self.ids = self.ids[-self.room:]

    def tensor(self):
        return torch.tensor([self.ids], device=device)


@app.post("/chat")
def chat_route():
    body = request.get_json(force=True)
    if "message" not in body:
        abort(400, "message missing")
    ctx = Context(chat.config.max_position_embeddings, reserve=256)
    if body.get("session"):
        ctx.push(decode_blob(body["session"]))
    turn = [{"role": "user", "content": body["message"]}]
    ctx.push(chat_tok.apply_chat_template(turn, add_generation_prompt=True))
    ids = ctx.tensor()
    with torch.inference_mode():
        out = chat.generate(ids, max_new_tokens=256, do_sample=True, top_p=0.9)
    new = out[0, ids.shape[1]:].tolist()
    ctx.push(new)
    return jsonify(reply=chat_tok.decode(new, skip_special_tokens=True), session=encode_blob(ctx.ids))


@app.post("/score")
def score_route():
    body = request.get_json(force=True)
    pairs = body.get("pairs", [])
    if not pairs:
        abort(400, "no pairs")
    enc = rm_tok([p[0] for p in pairs], [p[1] for p in pairs], padding=True, return_tensors="pt")
    if enc.input_ids.shape[1] > rm.config.max_position_embeddings:
        abort(413, "pair too long")
    with torch.inference_mode():
        scores = rm(**enc.to(device)).logits.squeeze(-1)
    return jsonify(scores=scores.tolist())


if __name__ == "__main__":
    app.run(port=5005)
