"""Small truthful fakes, shipped so that whoever builds on Tokenmill can test without a real model."""
