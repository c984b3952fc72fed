//! What posting and polling cost.

fn main() {
    divan::main();
}
