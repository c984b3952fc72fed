use efa_direct::*;

fn main() -> Result<(), Error> {
    let device = Device::open("soft0")?;
    let pd = device.alloc_pd()?;
    let region = pd.allocate(64, Access::ALL)?;
    let slice = region.slice(..)?;
    drop(region);
    println!("{}", slice.len());
    Ok(())
}
