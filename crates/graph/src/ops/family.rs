//! How families of operators enter the list: many names, one reader.

/// The entries of a family: `family!(domain, read, samples; "Name" since, ...)`. `read(reader, name)` makes the
/// operator of a name, `samples(name)` its examples.
macro_rules! family {
    ($domain:literal, $read:expr, $samples:expr; $($name:literal $since:literal),* $(,)?) => { &[$($crate::op::OpDef {
        name: $name,
        domain: $domain,
        since: $since,
        read: |r| $read(r, $name),
        samples: || $samples($name),
    }),*] };
}
pub(crate) use family;
