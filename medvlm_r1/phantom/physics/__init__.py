"""How each modality shows a scene."""
