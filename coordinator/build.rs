//! `sqlx::migrate!` embeds the migrations when the crate is compiled, and cargo does not know that it depends on them.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
