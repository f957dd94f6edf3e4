//! What Flumen persists or sends between nodes: FlatBuffers schemas and their generated code.
