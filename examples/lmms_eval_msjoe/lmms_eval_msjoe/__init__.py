"""What lmms-eval is told when it starts; the model itself is imported when it is asked for."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("msjoe_frames", chat_class_path="lmms_eval_msjoe.frames.MsjoeFrames")
