"""Language models: tokens [B,T] to hidden states [B,T,D], and the heads on top."""

ARCHITECTURES = {  # model.architecture -> its class
    "transformer": "gpt1cli.models.transformer:Transformer",
    "lstm": "gpt1cli.models.lstm:LSTM",
}
