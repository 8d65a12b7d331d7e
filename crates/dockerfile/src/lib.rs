//! Dockerfiles as text: what they say, not what is done about it.
//!
//! Owns: the parser (directives, continuations, heredocs, all instructions and their flags), variable
//! expansion, build checks, the `.dockerignore` language, Go's path patterns. Does not own: any I/O,
//! any meaning of paths on disk, images, or the order in which steps run (`build` does).
//! No state, locks, tasks or files.

pub mod glob;
pub mod ignore;
