use efa_direct::*;

fn main() -> Result<(), Error> {
    let device = Device::open("soft0")?;
    let pd = device.alloc_pd()?;
    let mut bytes = [0u8; 64];
    pd.with_borrowed(&mut bytes, Access::REMOTE_WRITE, |_region| bytes[0] = 1)?;
    let kept = pd.with_borrowed(&mut bytes, Access::REMOTE_WRITE, |region| region.slice(..))?;
    drop(kept);
    Ok(())
}
