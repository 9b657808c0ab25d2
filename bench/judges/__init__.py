"""Pretrained models that judge images: CLIP, and a captioner."""
