"""Encoders: from pixels, region features, word ids or stored features to tokens."""
