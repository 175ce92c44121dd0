//! The model that is trained through, written once over an [`super::engine::Engine`]: what a config.json asks for
//! (`spec`), its frozen weights, and the forward and backward pass of a layer and of the whole.
