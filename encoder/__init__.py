"""Learning: schema, preprocessing, modality encoders, autoencoder, artifact."""
