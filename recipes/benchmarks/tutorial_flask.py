"""`python -m recipes.benchmarks.tutorial_flask FOLDER PORT [--one-at-a-time]`: serves a classifier with Flask.

This is the service of typical tutorials, for comparison in `serve_load`. Flask's own server starts a thread for each
request, except with `--one-at-a-time`.
"""

import logging
import sys

import torch
from flask import Flask, jsonify, request
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main() -> None:
    folder, port = sys.argv[1:3]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    app = Flask(__name__)

    @app.route("/predict", methods=["POST"])
    def predict():
        inputs = tokenizer(request.json["text"], return_tensors="pt", truncation=True)
        with torch.no_grad():
            probabilities = model(**inputs).logits.softmax(-1)[0]
        best = int(probabilities.argmax())
        return jsonify(label=model.config.id2label[best], score=float(probabilities[best]))

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a log line per request would cost time
    app.run(port=int(port), threaded="--one-at-a-time" not in sys.argv)


if __name__ == "__main__":
    main()
