use efa_direct::*;
use std::ops::DerefMut;

fn main() -> Result<(), Error> {
    let device = Device::open("soft0")?;
    let pd = device.alloc_pd()?;
    let mut region = pd.allocate(64, Access::REMOTE_WRITE)?;
    let bytes: &mut [u8] = region.as_mut();
    let bytes: &[u8] = region.as_ref();
    let bytes: &mut [u8] = region.deref_mut();
    region[0] = 1;
    Ok(())
}
