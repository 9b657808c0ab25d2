"""The benchmark of Attend-and-Excite: prompts that name two things, judged by CLIP and a captioner."""
