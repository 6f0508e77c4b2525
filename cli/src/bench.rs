//! The parts of `millrace bench`: an app that costs nothing, a load generator that finds an
//! app's own ceiling, and a plain copy from topic to topic as the yardstick.

pub mod copy;
pub mod echo;
pub mod load;
