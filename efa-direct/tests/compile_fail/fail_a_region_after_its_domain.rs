use efa_direct::*;

fn main() -> Result<(), Error> {
    let device = Device::open("soft0")?;
    let pd = device.alloc_pd()?;
    let region = pd.allocate(64, Access::ALL)?;
    drop(pd);
    region.write(0, b"too late")?;
    Ok(())
}
