"""How well real images are edited, judged by CLIP, LPIPS and a DINO ViT: the evaluation of pix2pix-zero."""
