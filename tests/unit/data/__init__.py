"""Tests of `llmtrain.data` and `llmtrain.tokenizer`: real files, no stand-ins."""
