"""Classic tasks: text is classified, tagged, related and searched for answers by a head on an encoder."""
