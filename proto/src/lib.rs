//! What agents, operators and the controller say to each other.
//!
//! The `.proto` files under `proto/` are the contract. [`v1`] is generated from them and checked in,
//! so that nobody needs a code generator to build; the test `generated_code_is_fresh` proves that it
//! is up to date (`COFFERDAM_CODEGEN=write cargo test -p proto` rewrites it). [`convert`] turns wire
//! types into the types the rest of the code works with, and refuses what does not fit.

pub mod convert;

/// Generated messages, clients and servers of the package `cofferdam.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    rustdoc::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; its style is the generator's"
)]
pub mod v1 {
    include!("generated/cofferdam.v1.rs");
}

/// The `.proto` files as a serialised `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptor_set.bin");
